import {
  type Agent,
  AppError,
  type CreateAgentBody,
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

/** A new agent, version 1. @throws AppError `agent.mcp` */
export function createAgent(id: string, body: CreateAgentBody, at: string): Agent {
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
    harness: { type: 'native' },
    metadata: body.metadata ?? {},
    version: 1,
    created_at: at,
    updated_at: at,
    archived_at: null,
  };
  return withTools(agent, body.tools, body.mcp_servers);
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

function emptyToNull(text: string | null | undefined): string | null {
  return text === undefined || text === '' ? null : text;
}

/**
 * The agent's next version, or the same object when nothing changes.
 *
 * @throws AppError `agent.version-conflict` when the body names another version than the newest, `agent.archived`.
 */
export function updateAgent(agent: Agent, body: UpdateAgentBody, at: string): Agent {
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
    metadata,
  };
  if (sameJson(changed, agent)) return agent;
  return { ...changed, version: agent.version + 1, updated_at: at };
}
