"""Records or arrays in, plotly figures out. Nothing here computes a result."""
