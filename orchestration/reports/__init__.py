"""From records to report pages, and to the progress on the terminal."""
