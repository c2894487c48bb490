"""Browser gates: find a browser, run the pytest + Playwright suite, keep screenshots and traces."""
