// Lines of clean CSV to entity hashes and IPv4 addresses.
