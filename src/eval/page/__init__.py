"""The page a reviewer reads: one HTML file with the findings, the tables and the plots of a comparison."""
