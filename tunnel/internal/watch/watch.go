// Package watch turns netlink notifications of the Linux kernel into change
// tokens: "something may have changed, look again". It must never carry what
// changed: who reads a token lists the state anew, so a lost notification and
// a burst of them cost the same.
package watch
