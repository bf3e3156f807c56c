//go:build !race

package plan

const propertySteps = 20_000
