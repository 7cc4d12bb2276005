import { z } from 'zod';
import { durableEvent } from './event-declaration.ts';
import type { Agent } from './wire/agents.ts';
import type { Environment } from './wire/environments.ts';
import type { FileResource } from './wire/files.ts';

const wholeAgent = z.object({ agent: z.custom<Agent>((value) => typeof value === 'object' && value !== null) });
const wholeEnvironment = z.object({
  environment: z.custom<Environment>((value) => typeof value === 'object' && value !== null),
});
const wholeFile = z.object({
  file: z.custom<FileResource>((value) => typeof value === 'object' && value !== null),
  digest: z.string(),
});
const keyFacts = z.object({
  name: z.string(),
  kind: z.enum(['api_key', 'dashboard', 'link', 'environment_key']),
  /** The environment that an environment key is for. */
  environment_id: z.string().optional(),
});

const declare = <const T extends string, S extends z.ZodType>(
  aggregate: 'agent' | 'environment' | 'file' | 'api_key' | 'workspace',
  type: T,
  data: S,
  summary: string,
) => durableEvent({ type, schemaVersion: 1, aggregate, data, summary });

export const AgentCreated = declare('agent', 'agent.created', wholeAgent, 'An agent was created, version 1.');
export const AgentUpdated = declare(
  'agent',
  'agent.updated',
  wholeAgent,
  'An agent got a new version; holds all of it.',
);
export const AgentArchived = declare('agent', 'agent.archived', wholeAgent, 'An agent was archived.');
export const EnvironmentCreated = declare(
  'environment',
  'environment.created',
  wholeEnvironment,
  'An environment was created.',
);
export const EnvironmentUpdated = declare(
  'environment',
  'environment.updated',
  wholeEnvironment,
  'An environment was changed; holds all of it.',
);
export const EnvironmentArchived = declare(
  'environment',
  'environment.archived',
  wholeEnvironment,
  'An environment was archived.',
);
export const EnvironmentDeleted = declare(
  'environment',
  'environment.deleted',
  z.object({}),
  'An environment was deleted.',
);
export const FileCreated = declare(
  'file',
  'file.created',
  wholeFile,
  'A file was uploaded, or kept from a session; its bytes are the blob of that digest.',
);
export const FileDeleted = declare('file', 'file.deleted', z.object({}), 'A file was deleted.');
export const ApiKeyCreated = declare(
  'api_key',
  'api_key.created',
  keyFacts,
  'A credential was made; the event holds neither it nor its hash.',
);
export const ApiKeyRevoked = declare('api_key', 'api_key.revoked', z.object({}), 'A credential was revoked.');
export const WorkspaceCreated = declare(
  'workspace',
  'workspace.created',
  z.object({ name: z.string() }),
  'A workspace was created.',
);

export const catalogueEvents = Object.freeze([
  AgentCreated,
  AgentUpdated,
  AgentArchived,
  EnvironmentCreated,
  EnvironmentUpdated,
  EnvironmentArchived,
  EnvironmentDeleted,
  FileCreated,
  FileDeleted,
  ApiKeyCreated,
  ApiKeyRevoked,
  WorkspaceCreated,
] as const);
