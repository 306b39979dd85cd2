"""From bytes to (entity, address) pairs: addresses, entities, networks, and the readers of files and columns."""
