"""Reports: from a folder of results to one page that needs nothing besides itself."""
