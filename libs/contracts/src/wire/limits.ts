/** Bounds on everything a caller may send. Sizes in bytes or UTF-16 code units as named. */
export const LIMITS = {
  /** Bodies that carry content: messages, images, documents. */
  contentBodyBytes: 32 * 1024 * 1024,
  /** Every other body. */
  bodyBytes: 1024 * 1024,
  jsonDepth: 64,
  eventsPerRequest: 50,
  initialEvents: 50,
  contentBlocks: 200,
  /** Content blocks of all events of one request. */
  requestContentBlocks: 1_000,
  /** Streams that a forked session's events lie in, its own not counted. */
  forkDepth: 64,
  /** Messages that wait in one session. */
  queuedMessages: 1_024,
  textChars: 4_000_000,
  nameChars: 256,
  descriptionChars: 4_096,
  systemChars: 100_000,
  modelChars: 256,
  metadataPairs: 16,
  metadataKeyChars: 64,
  metadataValueChars: 512,
  tools: 256,
  toolNameChars: 128,
  mcpServers: 20,
  mcpServerNameChars: 255,
  allowedHosts: 256,
  contextKeyChars: 128,
  nodeSelectors: 16,
  tolerations: 16,
  /** Sandboxes that one environment keeps warm. */
  poolSize: 200,
  listLimitMax: 100,
  eventListLimitMax: 1_000,
  modelListLimitMax: 1_000,
  idempotencyKeyChars: 255,
  fileNameChars: 255,
  /** Files that one list may be asked for by their ids. */
  fileIds: 100,
  sessionResources: 100,
  /** Files that are kept of one session's outputs folder. */
  sessionOutputs: 1_000,
  mountPathChars: 512,
  fileExpirySecondsMin: 3_600,
  fileExpirySecondsMax: 90 * 86_400,
  /** Content of one event above this many bytes travels and is stored as blob digests (B4). */
  inlineBytes: 64 * 1024,
  /** Content of all events of one command that may travel inline: NATS carries 1 MiB unless it is told otherwise. */
  commandContentBytes: 512 * 1024,
  /** Tools of one agent, as JSON: they are part of every session's first event. */
  toolsBytes: 256 * 1024,
  /** Blob content that one page of events, or one step of a replay, reads into memory; one event may hold more. */
  pageBlobBytes: 8 * 1024 * 1024,
} as const;
