"""Between protobuf and the core's messages; everything from outside is checked here, and only here."""
