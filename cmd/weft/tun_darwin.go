package main

// tunName is the TUN of the userspace engine. macOS numbers them; this is 'w'
// in ASCII, far above those that the system and VPNs take.
const tunName = "utun119"
