"""What build.py is made of.  Standard library only, except demo.py and bench.py, which run under the venv's interpreter."""
