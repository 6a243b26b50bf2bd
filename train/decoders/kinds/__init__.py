"""One file a kind of decoder; the file's name is the kind's.

A new kind is a file here with a dataclass of options and one subclass of `contract.Decoder` that names it as
``settings``. A configuration with ``decoder.kind`` of that name trains it; export and runtime need nothing more, as
long as its ``answer`` is one that the bundle's manifest knows.
"""
