"""Objects of many sizes in one scene: a model of several bands beside models of one band."""
