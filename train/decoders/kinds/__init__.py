"""One file a kind of decoder; see ``contract.Decoder`` for what a new one has to give."""
