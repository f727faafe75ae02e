"""From records to pages and to the terminal."""
