"""The archive: immutable packs of messages. Public surface: `store.store`, `store.PackStore`."""
