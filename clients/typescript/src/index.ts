export * from "./sessiond/v1/error_reason_pb.js";
export * from "./sessiond/v1/session_pb.js";
export * from "./sessiond/v1/session_service_pb.js";
