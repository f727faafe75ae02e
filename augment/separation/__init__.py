"""What the stages of the stream do with rows: decode, separate, crop, and survive bad clips."""
