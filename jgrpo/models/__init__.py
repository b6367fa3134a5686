"""One decoder for every supported family, and the ways its weights come in and go out."""
