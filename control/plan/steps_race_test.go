//go:build race

package plan

// The race detector makes every step slow, and nothing here is concurrent.
const propertySteps = 2_000
