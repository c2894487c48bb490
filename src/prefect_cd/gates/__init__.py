"""Gates: run the tests that the pipeline file names, and decide what they proved."""
