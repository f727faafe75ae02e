"""The data stages of the stream: decode, separate and crop clips, and handle clips that cannot be used."""
