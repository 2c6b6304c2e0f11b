"""From text and conversations to token ids, as training encodes them: special tokens come from the template alone."""
