"""An exchange with a fault at one byte: `exchange` is what happens, `world` where, `program` tries byte after byte."""
