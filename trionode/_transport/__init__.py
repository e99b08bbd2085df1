"""What nodes stand on: listeners and streams of bytes. `interfaces` says what a transport is, `tcp` is the default."""
