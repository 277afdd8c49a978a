"""Inside the step `route_llm`: one request through its candidates, one call after the other."""
