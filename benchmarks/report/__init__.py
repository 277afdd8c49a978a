"""What is made of the figures: medians, tables, plots, and a file that later runs merge into."""
