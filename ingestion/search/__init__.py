"""Finding archived mail: the query language, the words that documents are found by, pages of
results, facets. It reads only; `services.archive.indexing` writes the documents."""
