"""One file per dataset or protocol; every public function returns a complete Run and is a name on the command line."""
