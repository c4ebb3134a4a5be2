"""Code of one's own, admitted by SKINMTL_ALLOW=mine: what the how-to pages show, and the tests run."""
