"""Many clients that connect at once, as they do when their server was restarted."""
