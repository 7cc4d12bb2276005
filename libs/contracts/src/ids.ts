import { z } from 'zod';

/** Prefixes of public ids, as the wire contract has them (sbx_, turn_ and ckpt_ are ours). */
export const ID_PREFIXES = {
  agent: 'agent',
  environment: 'env',
  session: 'sesn',
  event: 'sevt',
  thread: 'sthr',
  sandbox: 'sbx',
  file: 'file',
  sessionResource: 'sesrsc',
  turn: 'turn',
  checkpoint: 'ckpt',
  workspace: 'wrkspc',
  apiKey: 'apikey',
  work: 'work',
  request: 'req',
  command: 'cmd',
} as const;
export type IdKind = keyof typeof ID_PREFIXES;

/** A branded id: a plain string on the wire that the compiler keeps apart from other ids. */
export type Id<K extends IdKind> = string & { readonly __id: K };
export type AgentId = Id<'agent'>;
export type EnvironmentId = Id<'environment'>;
export type SessionId = Id<'session'>;
export type EventId = Id<'event'>;
export type SandboxId = Id<'sandbox'>;
export type FileId = Id<'file'>;
export type TurnId = Id<'turn'>;
export type WorkspaceId = Id<'workspace'>;
export type ApiKeyId = Id<'apiKey'>;
export type CommandId = Id<'command'>;

const ID_BODY = '[A-Za-z0-9_-]{1,64}';

function hex(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += byte.toString(16).padStart(2, '0');
  return text;
}

/** A new id whose body is a UUIDv7 without dashes: sortable by creation time, unguessable in its last 74 bits. */
export function newId<K extends IdKind>(kind: K): Id<K> {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  let now = Date.now();
  for (let i = 5; i >= 0; i--) {
    bytes[i] = now % 256;
    now = Math.floor(now / 256);
  }
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x70;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  return `${ID_PREFIXES[kind]}_${hex(bytes)}` as Id<K>;
}

/** Schema of an id of one kind: prefix, then up to 64 of `[A-Za-z0-9_-]`. */
export function idSchema<K extends IdKind>(kind: K): z.ZodType<Id<K>, string> {
  const pattern = new RegExp(`^${ID_PREFIXES[kind]}_${ID_BODY}$`);
  return z
    .string()
    .regex(pattern, `must be an id that starts with ${ID_PREFIXES[kind]}_`)
    .transform((value) => value as Id<K>) as unknown as z.ZodType<Id<K>, string>;
}

/** True when the text has the shape of an id of that kind; says nothing about whether it exists. */
export function isId<K extends IdKind>(kind: K, value: string): value is Id<K> {
  return new RegExp(`^${ID_PREFIXES[kind]}_${ID_BODY}$`).test(value);
}
