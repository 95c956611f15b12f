"""One run, from its composed config to the files in its folder."""
