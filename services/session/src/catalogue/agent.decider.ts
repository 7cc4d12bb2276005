import {
  type Agent,
  AppError,
  type CreateAgentBody,
  HARNESS_METADATA_KEY,
  HARNESS_NATIVE,
  type HarnessParam,
  LIMITS,
  type McpServer,
  mcpFault,
  patchMetadata,
  type ResolvedTool,
  resolveModel,
  resolveTools,
  sameJson,
  type ToolParam,
  type UpdateAgentBody,
} from '@holdfast/contracts';

/** The coding harnesses of this deployment, by name, with their versions. */
export type EnabledHarnesses = ReadonlyMap<string, string>;

/** A new agent, version 1. @throws AppError as {@link requireHarness} */
export function createAgent(id: string, body: CreateAgentBody, at: string, harnesses: EnabledHarnesses): Agent {
  const agent: Agent = {
    id,
    type: 'agent',
    name: body.name,
    description: emptyToNull(body.description),
    system: emptyToNull(body.system),
    model: resolveModel(body.model),
    tools: [],
    mcp_servers: [],
    skills: [],
    multiagent: null,
    execution_identity: { type: 'service_account' },
    harness: wantedHarness(body.harness, body.metadata ?? {}) ?? { type: HARNESS_NATIVE },
    metadata: body.metadata ?? {},
    version: 1,
    created_at: at,
    updated_at: at,
    archived_at: null,
  };
  const equipped = withTools(agent, body.tools, body.mcp_servers);
  requireHarness(equipped, harnesses);
  return equipped;
}

/**
 * The agent with other tools, other MCP servers, or both; what is undefined stays, null is none.
 * @throws AppError `agent.mcp` when they do not go together
 */
export function withTools<
  A extends { readonly tools: readonly ResolvedTool[]; readonly mcp_servers: readonly McpServer[] },
>(agent: A, tools: readonly ToolParam[] | null | undefined, servers: readonly McpServer[] | null | undefined): A {
  const changed = {
    ...agent,
    ...(tools === undefined ? {} : { tools: resolveTools(tools ?? []) }),
    ...(servers === undefined ? {} : { mcp_servers: servers ?? [] }),
  };
  const fault = mcpFault(changed.tools, changed.mcp_servers);
  if (fault !== undefined) throw new AppError('invalid', 'agent.mcp', `${fault}.`);
  return changed;
}

/** The harness that a body names by itself or in its metadata; null when it names none. */
function wantedHarness(
  harness: HarnessParam | null | undefined,
  metadata: Readonly<Record<string, string | null>>,
): Agent['harness'] | null {
  const alias = metadata[HARNESS_METADATA_KEY];
  if (harness == null) return alias == null ? null : { type: alias };
  return { type: harness.type, ...(harness.version == null ? {} : { version: harness.version }) };
}

/**
 * Refuses an agent that this deployment cannot run.
 *
 * @throws AppError `agent.harness-alias` when its metadata name another harness than it has, `agent.harness-not-enabled`,
 * `agent.harness-version`, and as {@link requireHarnessTools}
 */
export function requireHarness(
  agent: Pick<Agent, 'harness' | 'tools'> & Partial<Pick<Agent, 'metadata'>>,
  harnesses: EnabledHarnesses,
): void {
  const refuse = (code: string, message: string): never => {
    throw new AppError('invalid', `agent.${code}`, message);
  };
  const { type, version } = agent.harness;
  const alias = agent.metadata?.[HARNESS_METADATA_KEY] ?? type;
  if (alias !== type)
    refuse('harness-alias', `metadata.harness names "${alias}" and harness.type "${type}"; name one of them.`);
  const known = type === HARNESS_NATIVE ? undefined : harnesses.get(type);
  if (type !== HARNESS_NATIVE && known === undefined) {
    const names = [HARNESS_NATIVE, ...harnesses.keys()].join(', ');
    refuse('harness-not-enabled', `The harness "${type}" is not enabled in this deployment; it has: ${names}.`);
  }
  if (version !== undefined && version !== known)
    refuse('harness-version', `This deployment has ${type} ${known ?? 'without a version'}, not ${version}.`);
  requireHarnessTools(agent);
}

/** Harnesses that run a tool without asking, whatever they are told. */
const NEVER_ASK: ReadonlySet<string> = new Set(['codex']);

/** @throws AppError `agent.harness-tools`, `agent.harness-asks` for tools that the agent's harness cannot be given */
export function requireHarnessTools({ harness, tools }: Pick<Agent, 'harness' | 'tools'>): void {
  if (harness.type === HARNESS_NATIVE) return;
  const toolsets = tools.filter((tool) => tool.type === 'agent_toolset_20260401');
  if (toolsets.length < tools.length)
    throw new AppError(
      'invalid',
      'agent.harness-tools',
      `Custom tools and MCP servers are not supported with the harness "${harness.type}" yet; leave them out.`,
    );
  const asks = toolsets
    .flatMap((toolset) => [toolset.default_config, ...toolset.configs])
    .some((config) => config.enabled && config.permission_policy.type === 'always_ask');
  if (asks && NEVER_ASK.has(harness.type))
    throw new AppError(
      'invalid',
      'agent.harness-asks',
      `The harness "${harness.type}" cannot ask before it runs a tool; use the permission policy always_allow.`,
    );
}

function emptyToNull(text: string | null | undefined): string | null {
  return text === undefined || text === '' ? null : text;
}

/**
 * The agent's next version, or the same object when nothing changes.
 *
 * @throws AppError `agent.version-conflict` when the body names another version than the newest, `agent.archived`, and as
 * {@link requireHarness}
 */
export function updateAgent(agent: Agent, body: UpdateAgentBody, at: string, harnesses: EnabledHarnesses): Agent {
  if (agent.archived_at !== null) throw new AppError('invalid', 'agent.archived', `The agent ${agent.id} is archived.`);
  if (body.version !== undefined && body.version !== agent.version) {
    throw new AppError(
      'rejected',
      'agent.version-conflict',
      `The agent is at version ${agent.version}, not ${body.version}; read it again and repeat the change.`,
      { details: { actualVersion: agent.version } },
    );
  }
  const metadata = body.metadata == null ? agent.metadata : patchMetadata(agent.metadata, body.metadata);
  if (Object.keys(metadata).length > LIMITS.metadataPairs) {
    throw new AppError('invalid', 'agent.metadata', `metadata must have at most ${LIMITS.metadataPairs} pairs.`);
  }
  const changed: Agent = {
    ...withTools(agent, body.tools, body.mcp_servers),
    ...(body.name === undefined ? {} : { name: body.name }),
    ...(body.description === undefined ? {} : { description: emptyToNull(body.description) }),
    ...(body.system === undefined ? {} : { system: emptyToNull(body.system) }),
    ...(body.model === undefined ? {} : { model: resolveModel(body.model, agent.model) }),
    harness: wantedHarness(body.harness, body.metadata ?? {}) ?? agent.harness,
    metadata,
  };
  if (sameJson(changed, agent)) return agent;
  requireHarness(changed, harnesses);
  return { ...changed, version: agent.version + 1, updated_at: at };
}
