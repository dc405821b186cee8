"""A model behind a URL or a page: an engine that batches across callers, an HTTP service and an app in front of it."""
