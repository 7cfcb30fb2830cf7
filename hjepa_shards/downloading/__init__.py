"""Raw data before a build: where each source is on the internet, and whether it is what its authors published.

How a file is fetched: `storage/http_download.py`. What is made of it: `building`, next.
"""
