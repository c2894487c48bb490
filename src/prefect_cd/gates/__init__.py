"""Gates: run the tests that the pipeline file names, and judge what they proved."""
