select pgnexus.home() as home
