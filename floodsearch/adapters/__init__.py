"""A run of a study, trained by a trainer of another library; each adapter needs that library, an extra."""
