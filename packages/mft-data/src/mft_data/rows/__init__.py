"""From encoded conversations to rows: what is held out, what is too long, what is packed with what."""
