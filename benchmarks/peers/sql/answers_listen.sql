LISTEN peer_done
