module holdfast/testbed/pause

go 1.26.0
