"""The study of a search: settings, candidates, storage, the run folder."""
