"""What an analysis found and cost: values, files and pictures."""
