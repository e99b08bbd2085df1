"""Two processes that rotate and talk: `program` is the first, `second` the other, `both` what they have in common."""
