"""Browser gates: run the commit's end-to-end suite in a real browser, and collect the evidence."""
