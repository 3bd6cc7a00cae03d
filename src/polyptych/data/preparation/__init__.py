"""From the archives that authors publish to data that training reads fast: unpack, verify, derive, convert."""
