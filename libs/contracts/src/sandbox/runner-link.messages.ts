import { z } from 'zod';
import { jsonObject } from '../json-schema.ts';
import { SANDBOX_TOOLS } from '../wire/agents.ts';
import { harnessEvent, harnessStart } from './harness.messages.ts';

/**
 * The link between a runner in its sandbox and the hub in the sandbox service: JSON messages over a WebSocket that the
 * runner dials. The hub speaks first with a nonce; the runner proves itself by its token, once (on one machine it comes
 * over a file descriptor, in a pod it is the projected service-account token for {@link HUB_AUDIENCE}), and by a
 * signature with a key of its own from then on (X5).
 *
 * A pod dials before anybody has claimed it: it is `bound` to its key at once, and `welcome` comes with the claim. It
 * opens one link for calls, and one more for each connection that leaves the sandbox: after `welcome` the messages of
 * such an `egress` link are binary, the bytes of one connection to the platform's proxy, of a `door` link to its model door.
 */
export const RUNNER_LINK_PATH = '/runner-link';
/** A link that is silent for so long is taken as gone; both sides ping at a third of it. */
export const LINK_SILENCE_MS = 9_000;
/**
 * How a runner closes a link when it leaves in good order: it has told how everything ended that it had begun, so what the
 * hub has heard no result of never began here, and never will. Any other end says nothing of that.
 */
export const RUNNER_LEFT = 4_000;
/** What one message may hold; longer output travels in pieces. */
export const LINK_MESSAGE_BYTES = 8 * 1024 * 1024;

/** The audience that a pod's token must be made for; the API server refuses such a token, and the hub any other. */
export const HUB_AUDIENCE = 'holdfast-hub';

const callId = z.string().min(1).max(128);
const outcome = z.object({
  outcome: z.enum(['completed', 'unknown', 'cancelled']),
  isError: z.boolean(),
  text: z.string(),
});
/** A tool call's result as the runner knows it. */
export type RunnerOutcome = z.infer<typeof outcome>;

/** A file of the session: where it goes, and what it is. */
const upload = z.object({ path: z.string(), digest: z.string() });
export type UploadedFile = z.infer<typeof upload>;
/** What a pack of a checkpoint holds at most. */
export const PACK_LIMIT_BYTES = 16 * 1024 * 1024;
/** Packs that are on their way to the hub and not kept yet, at most. */
export const PACKS_UNDER_WAY = 2;

const digest = z.string().regex(/^[0-9a-f]{64}$/);
const pack = z.object({ digest, bytes: z.int().min(1).max(PACK_LIMIT_BYTES) });
/** Where the tree of a root lies; what is in it is the runner's own matter. */
const place = z.object({ pack: digest, at: z.int().min(0), bytes: z.int().min(1), digest });
const roots = z.object({ workspace: place, home: place });
/** A checkpoint as it is kept: what its roots are, and every pack that they need. */
export const keptCheckpoint = z.object({ id: z.string(), roots: roots.partial(), packs: z.array(pack).max(100_000) });
export type KeptCheckpoint = z.infer<typeof keptCheckpoint>;
const count = z.int().min(0);
const takenCheckpoint = z.object({
  /** Null when everything is as the base has it. */
  roots: roots.nullable(),
  packs: z.array(pack).max(100_000),
  figures: z.object({
    /** Files, folders and links, and what they take on disk. */
    entries: count,
    bytes: count,
    changed_files: count,
    /** What had to travel. */
    new_bytes: count,
    took_ms: count,
    /** How long the sandbox's other processes stood still. */
    stopped_ms: count,
    /** Sockets, pipes and devices, which are left out. */
    skipped: count,
    unreadable: count,
    /** Files that were written to each time that they were read. */
    torn: count,
  }),
  /** Some paths that could not be read, and why. */
  unreadable: z.array(z.string().max(400)).max(20),
});
export type TakenCheckpoint = z.infer<typeof takenCheckpoint>;

/** A file in the outputs folder; another stamp is another content. */
const output = z.object({ path: z.string().max(1_024), bytes: z.int().min(0), stamp: z.string().max(128) });
export type OutputFile = z.infer<typeof output>;

export const hubMessage = z.discriminatedUnion('type', [
  z.object({ type: z.literal('challenge'), nonce: z.string() }),
  /** The key is bound: from now on it is the proof, the token is not asked for again. A `welcome` follows with the claim. */
  z.object({ type: z.literal('bound') }),
  z.object({ type: z.literal('welcome'), env: z.record(z.string(), z.string()) }),
  z.object({ type: z.literal('claim'), id: z.string(), generation: z.int() }),
  z.object({
    type: z.literal('exec'),
    callId,
    generation: z.int(),
    tool: z.enum(SANDBOX_TOOLS),
    input: jsonObject,
    timeoutMs: z.int().min(1),
  }),
  /** Hands a prompt to the session's harness, or goes on telling of it; a prompt before it that still runs is cancelled. */
  z.object({
    type: z.literal('prompt'),
    callId,
    generation: z.int(),
    harness: harnessStart,
    sessionId: z.string().nullable(),
    content: z.array(
      z.discriminatedUnion('type', [
        z.object({ type: z.literal('text'), text: z.string() }),
        z.object({ type: z.literal('image'), mimeType: z.string(), data: z.string() }),
      ]),
    ),
    after: z.int().min(0),
  }),
  z.object({ type: z.literal('permit'), callId, generation: z.int(), toolCallId: z.string(), allow: z.boolean() }),
  z.object({ type: z.literal('cancel'), id: z.string(), callId, generation: z.int() }),
  /** How many bytes do workspace and home hold? */
  z.object({ type: z.literal('measure'), id: z.string() }),
  /** Which of these files of the session are not there as they were put? */
  z.object({ type: z.literal('uploads'), id: z.string(), files: z.array(upload) }),
  /** A piece of such a file, base64; the first one begins it anew, and with the last one it is there. */
  z.object({
    type: z.literal('upload'),
    id: z.string(),
    file: upload,
    at: z.int().min(0),
    data: z.string(),
    last: z.boolean(),
  }),
  /** What lies in the outputs folder? */
  z.object({ type: z.literal('outputs'), id: z.string(), limit: z.int() }),
  /** The bytes of one of them from a place on. */
  z.object({ type: z.literal('read-output'), id: z.string(), file: output, at: z.int().min(0), bytes: z.int().min(1) }),
  /** The workspace is above its bound: everything that may write is killed. */
  z.object({ type: z.literal('over-limit'), text: z.string() }),
  /** Take a checkpoint, on top of the newest that is kept. What `exclude` names is left out. */
  z.object({
    type: z.literal('checkpoint'),
    id: z.string(),
    base: keptCheckpoint.nullable(),
    exclude: z.array(z.string()),
    limits: z.object({ entries: z.int(), bytes: z.int() }),
  }),
  /** A pack is kept; another may come. */
  z.object({ type: z.literal('pack-kept'), digest }),
  /** What was taken last is kept under this id, or is not. */
  z.object({ type: z.literal('settled'), checkpointId: z.string().nullable() }),
  /** What was to be kept of one that is leaving is kept, or cannot be. */
  z.object({ type: z.literal('dismissed') }),
  /** Put these files where there are none of a session; null = just say whether there are. */
  z.object({ type: z.literal('restore'), id: z.string(), checkpoint: keptCheckpoint.nullable() }),
  /** A pack that was wanted; its bytes follow as binary messages. Null = it cannot be had. */
  z.object({ type: z.literal('pack'), digest, bytes: z.int().nullable() }),
]);
export type HubMessage = z.infer<typeof hubMessage>;

export const runnerMessage = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('hello'),
    /** Ed25519, SPKI, base64. */
    publicKey: z.string().max(256),
    /** Of the nonce, base64. */
    signature: z.string().max(256),
    token: z.string().max(8_192).nullable(),
    journalId: z.string().max(128),
    /** The pod's UID, which its key is bound to; null where the socket itself says who dials. */
    pod: z.string().max(64).nullable(),
    channel: z.enum(['calls', 'egress', 'door']),
    /** Whether it takes checkpoints and restores them; runners from before there were any do not say so. */
    keepsFiles: z.boolean().default(false),
  }),
  /** What a harness does, numbered from 1 for each prompt; before its `done`. */
  z.object({ type: z.literal('progress'), callId, sequence: z.int().min(1), event: harnessEvent }),
  /** Part of a call's whole output, or of a harness's own lines, base64; before its `done`. */
  z.object({ type: z.literal('output'), callId, data: z.string() }),
  z.object({ type: z.literal('done'), callId, result: outcome }),
  z.object({ type: z.literal('refused'), callId, code: z.literal('stale-generation') }),
  /** Answer to claim or cancel. */
  z.object({ type: z.literal('answer'), id: z.string(), stale: z.boolean(), result: outcome.nullable() }),
  /** Answer to uploads. */
  z.object({ type: z.literal('missing'), id: z.string(), paths: z.array(z.string()) }),
  /** Answer to upload; why it cannot be put there, else null. */
  z.object({ type: z.literal('uploaded'), id: z.string(), fault: z.string().max(1_000).nullable() }),
  /** Answer to outputs, in the order of their paths; `more` = there are more than were asked for. */
  z.object({ type: z.literal('outputs-found'), id: z.string(), files: z.array(output).max(10_000), more: z.boolean() }),
  /** Answer to read-output, base64; null = it is not as it was any more. */
  z.object({ type: z.literal('output-read'), id: z.string(), data: z.string().nullable() }),
  /** Answer to measure; null = more files than can be counted in time. */
  z.object({ type: z.literal('measured'), id: z.string(), bytes: z.int().min(0).nullable() }),
  /** It was told to end, nothing runs any more, and it waits a few seconds for a last checkpoint. */
  z.object({ type: z.literal('leaving') }),
  /** A pack of the checkpoint that is being taken; its bytes follow as binary messages. */
  z.object({ type: z.literal('pack'), digest, bytes: pack.shape.bytes }),
  /** A pack of the checkpoint that is restored, or of the base, is needed. */
  z.object({ type: z.literal('want'), digest }),
  /** Answer to checkpoint; `fault` when there is none. */
  z.object({
    type: z.literal('checkpointed'),
    id: z.string(),
    taken: takenCheckpoint.nullable(),
    fault: z.object({ code: z.enum(['entries', 'bytes', 'failed']), message: z.string().max(1_000) }).nullable(),
  }),
  /** Answer to restore: whether there were no files of a session, and whether there are now. */
  z.object({
    type: z.literal('restored'),
    id: z.string(),
    fresh: z.boolean(),
    restored: z.boolean(),
    fault: z.string().max(1_000).nullable(),
  }),
]);
export type RunnerMessage = z.infer<typeof runnerMessage>;
