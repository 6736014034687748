// Command main makes a token request with only a user and compares it with the expected JSON.
package main

import (
	"encoding/json"
	"log"

	vendor "client/vendor_client"
)

func main() {
	request, err := json.Marshal(vendor.NewIssueToken("u-1"))
	if err != nil {
		log.Fatal(err)
	}
	if string(request) != `{"userId":"u-1"}` {
		log.Fatalf("the generated client sends members that the caller did not set: %s", request)
	}
	log.Print("a request with only a user has only a user")
}
