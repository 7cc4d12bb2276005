import { z } from 'zod';
import { idSchema } from '../ids.ts';
import type { DeepReadonly } from '../json.ts';
import { emptyYet, metadata, metadataPatch, naming, notYet, text, timestamp } from './common.ts';
import { LIMITS } from './limits.ts';

export const BUILTIN_TOOLS = ['bash', 'read', 'write', 'edit', 'glob', 'grep', 'web_fetch', 'web_search'] as const;
export type BuiltinTool = (typeof BUILTIN_TOOLS)[number];
/** The tools that run in the sandbox; `web_fetch` runs in the platform, `web_search` is not offered yet. */
export const SANDBOX_TOOLS = ['bash', 'read', 'write', 'edit', 'glob', 'grep'] as const;
export type SandboxTool = (typeof SANDBOX_TOOLS)[number];
/** True for the tools that a sandbox runs, or a self-hosted environment's worker. */
export function isSandboxTool(name: string): name is SandboxTool {
  return SANDBOX_TOOLS.some((tool) => tool === name);
}

export const permissionPolicy = z.strictObject({
  type: z.enum(['always_allow', 'always_ask'], { error: naming('auto') }),
});
export type PermissionPolicy = z.infer<typeof permissionPolicy>;

const hostName = z
  .string()
  .regex(
    /^(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?$/,
    'must be a host name, without scheme, port or path',
  );
const hostList = z.array(hostName).min(1, 'is empty; leave it out instead').max(64);
const toolConfig = z
  .strictObject({
    name: z.enum(BUILTIN_TOOLS),
    /** The name again. */
    type: z.enum(BUILTIN_TOOLS).optional(),
    enabled: z.boolean().nullish(),
    permission_policy: permissionPolicy.nullish(),
    allowed_domains: hostList.nullish(),
    blocked_domains: hostList.nullish(),
    max_content_tokens: z.int().min(1).max(1_000_000).nullish(),
    url_sources: notYet('url_sources'),
    user_location: notYet('user_location'),
  })
  .refine(({ name, type = name }) => type === name, { message: 'type must be the same as name' })
  .refine(({ name, enabled }) => name !== 'web_search' || enabled !== true, {
    message: 'the tool "web_search" is not supported yet; leave it out or disable it',
  })
  .refine((config) => !(config.allowed_domains && config.blocked_domains), {
    message: 'allowed_domains and blocked_domains exclude each other',
  })
  .refine(
    (config) =>
      config.name === 'web_fetch' ||
      config.name === 'web_search' ||
      !(config.allowed_domains || config.blocked_domains || config.max_content_tokens),
    { message: 'allowed_domains, blocked_domains and max_content_tokens belong to web tools' },
  );

const agentToolset = z.strictObject({
  type: z.literal('agent_toolset_20260401'),
  default_config: z
    .strictObject({ enabled: z.boolean().nullish(), permission_policy: permissionPolicy.nullish() })
    .nullish(),
  configs: z
    .array(toolConfig)
    .max(BUILTIN_TOOLS.length)
    .refine((configs) => new Set(configs.map(({ name }) => name)).size === configs.length, 'names a tool twice')
    .nullish(),
});

const serverName = text(LIMITS.mcpServerNameChars, 1);
const mcpToolset = z.strictObject({
  type: z.literal('mcp_toolset'),
  mcp_server_name: serverName,
  default_config: z
    .strictObject({ enabled: z.boolean().nullish(), permission_policy: permissionPolicy.nullish() })
    .nullish(),
  configs: z
    .array(
      z.strictObject({
        name: text(LIMITS.toolNameChars, 1),
        enabled: z.boolean().nullish(),
        permission_policy: permissionPolicy.nullish(),
      }),
    )
    .max(LIMITS.tools)
    .refine((configs) => new Set(configs.map(({ name }) => name)).size === configs.length, 'names a tool twice')
    .nullish(),
});

/** Where the platform finds an MCP server. It is not asked before a session needs it. */
const mcpServer = z.strictObject({
  type: z.literal('url'),
  name: serverName,
  url: z
    .url({ protocol: /^https?$/ })
    .max(2_048)
    .refine((url) => {
      const parsed = URL.parse(url);
      return parsed === null || (parsed.username === '' && parsed.password === '');
    }, 'must not hold credentials; those of MCP servers come from vaults, which are not supported yet'),
});
export type McpServer = DeepReadonly<z.infer<typeof mcpServer>>;
export const mcpServers = z
  .array(mcpServer)
  .max(LIMITS.mcpServers)
  .refine((servers) => new Set(servers.map(({ name }) => name)).size === servers.length, 'names a server twice');

/**
 * What is wrong with the servers and the tools of one agent together: every server has its toolset and every toolset its
 * server. Undefined when nothing is.
 */
export function mcpFault(
  toolList: readonly { readonly type: string; readonly mcp_server_name?: string }[],
  servers: readonly { readonly name: string }[],
): string | undefined {
  const used = toolList.flatMap(({ mcp_server_name: name }) => (name === undefined ? [] : [name]));
  const dangling = used.find((name) => !servers.some((server) => server.name === name));
  if (dangling !== undefined) return `tools: no MCP server of the agent is named "${dangling}"`;
  const twice = used.find((name, at) => used.indexOf(name) !== at);
  if (twice !== undefined) return `tools: the MCP server "${twice}" has two toolsets`;
  const unused = servers.find(({ name }) => !used.includes(name));
  return unused === undefined
    ? undefined
    : `mcp_servers: "${unused.name}" is used by no mcp_toolset among the agent's tools`;
}
/** Tools of MCP servers are offered to the model under names that begin with this. */
export const MCP_TOOL_PREFIX = 'mcp__';

const customTool = z.strictObject({
  type: z.literal('custom'),
  name: z.string().regex(/^[A-Za-z0-9_-]{1,128}$/, 'must be 1 to 128 of A-Z a-z 0-9 _ -'),
  description: text(LIMITS.descriptionChars),
  input_schema: z.looseObject({ type: z.literal('object') }),
});

export const toolParam = z.discriminatedUnion('type', [agentToolset, mcpToolset, customTool]);
export type ToolParam = z.infer<typeof toolParam>;

export const tools = z
  .array(toolParam)
  .max(LIMITS.tools)
  .superRefine((list, context) => {
    if (new TextEncoder().encode(JSON.stringify(list)).length > LIMITS.toolsBytes) {
      context.addIssue({ code: 'custom', message: `must take at most ${LIMITS.toolsBytes} bytes as JSON` });
    }
    if (list.filter((tool) => tool.type === 'agent_toolset_20260401').length > 1) {
      context.addIssue({ code: 'custom', message: 'agent_toolset_20260401 may appear once' });
    }
    const names = list.filter((tool) => tool.type === 'custom').map((tool) => tool.name);
    for (const name of names) {
      if (names.indexOf(name) !== names.lastIndexOf(name) || (BUILTIN_TOOLS as readonly string[]).includes(name)) {
        context.addIssue({ code: 'custom', message: `the tool name "${name}" is used twice` });
        return;
      }
      if (name.startsWith(MCP_TOOL_PREFIX) && list.some((tool) => tool.type === 'mcp_toolset')) {
        context.addIssue({
          code: 'custom',
          message: `"${name}": names that begin with ${MCP_TOOL_PREFIX} are those of MCP tools`,
        });
        return;
      }
    }
  });

const effortLevel = z.enum(['low', 'medium', 'high', 'xhigh', 'max']);
export const modelParam = z.union([
  text(LIMITS.modelChars, 1),
  z.strictObject({
    id: text(LIMITS.modelChars, 1),
    effort: z.union([effortLevel, z.strictObject({ type: effortLevel })]).nullish(),
    speed: z.literal('standard', { error: 'speed "fast" is not supported yet; use "standard"' }).nullish(),
    inference_geo: notYet('inference_geo'),
  }),
]);

/** A resolved model: always an object in responses. */
const modelConfig = z.strictObject({
  id: z.string(),
  effort: z.strictObject({ type: effortLevel }),
  speed: z.literal('standard'),
});
export type ModelConfig = DeepReadonly<z.infer<typeof modelConfig>>;

/** An effort that is left out is that of the model it replaces, else `high`. */
export function resolveModel(model: z.infer<typeof modelParam>, before?: ModelConfig): ModelConfig {
  const given = typeof model === 'string' ? { id: model } : model;
  const effort = given.effort ?? before?.effort ?? 'high';
  return { id: given.id, effort: typeof effort === 'string' ? { type: effort } : effort, speed: 'standard' };
}

const resolvedToolConfig = z.strictObject({
  type: z.enum(BUILTIN_TOOLS),
  name: z.enum(BUILTIN_TOOLS),
  enabled: z.boolean(),
  permission_policy: permissionPolicy,
  allowed_domains: z.array(z.string()).optional(),
  blocked_domains: z.array(z.string()).optional(),
  max_content_tokens: z.int().optional(),
  /** `web_fetch` only: null, every source. */
  url_sources: z.null().optional(),
});
export type ResolvedToolConfig = DeepReadonly<z.infer<typeof resolvedToolConfig>>;
const resolvedTool = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('agent_toolset_20260401'),
    default_config: z.strictObject({ enabled: z.boolean(), permission_policy: permissionPolicy }),
    configs: z.array(resolvedToolConfig),
  }),
  z.strictObject({
    type: z.literal('mcp_toolset'),
    mcp_server_name: z.string(),
    default_config: z.strictObject({ enabled: z.boolean(), permission_policy: permissionPolicy }),
    configs: z.array(z.strictObject({ name: z.string(), enabled: z.boolean(), permission_policy: permissionPolicy })),
  }),
  z.strictObject({
    type: z.literal('custom'),
    name: z.string(),
    description: z.string(),
    input_schema: z.looseObject({ type: z.literal('object') }),
  }),
]);
export type ResolvedTool = DeepReadonly<z.infer<typeof resolvedTool>>;

/**
 * Resolves every `enabled` and `permission_policy` of a toolset, as responses echo them. `web_search` is not offered
 * yet and resolves as disabled.
 */
export function resolveTools(list: readonly ToolParam[]): ResolvedTool[] {
  return list.map((tool) => {
    if (tool.type === 'custom') return tool;
    const enabled = tool.default_config?.enabled ?? true;
    if (tool.type === 'mcp_toolset') {
      const policy = tool.default_config?.permission_policy ?? { type: 'always_ask' as const };
      return {
        type: tool.type,
        mcp_server_name: tool.mcp_server_name,
        default_config: { enabled, permission_policy: policy },
        configs: (tool.configs ?? []).map((own) => ({
          name: own.name,
          enabled: own.enabled ?? enabled,
          permission_policy: own.permission_policy ?? policy,
        })),
      };
    }
    const policy = tool.default_config?.permission_policy ?? { type: 'always_allow' as const };
    return {
      type: tool.type,
      default_config: { enabled, permission_policy: policy },
      configs: BUILTIN_TOOLS.map((name) => {
        const own = tool.configs?.find((config) => config.name === name);
        return {
          type: name,
          name,
          enabled: name === 'web_search' ? false : (own?.enabled ?? enabled),
          permission_policy: own?.permission_policy ?? policy,
          ...(own?.allowed_domains ? { allowed_domains: own.allowed_domains } : {}),
          ...(own?.blocked_domains ? { blocked_domains: own.blocked_domains } : {}),
          ...(own?.max_content_tokens ? { max_content_tokens: own.max_content_tokens } : {}),
          ...(name === 'web_fetch' ? { url_sources: null } : {}),
        };
      }),
    };
  });
}

const executionIdentity = z
  .strictObject({ type: z.literal('service_account', { error: naming('aws_role') }) })
  .nullish();
/** What runs an agent's turns: the platform's own loop, or a coding harness in the sandbox. */
export const HARNESS_NATIVE = 'native';
const harnessType = z
  .string()
  .regex(/^[a-z][a-z0-9_]{0,31}$/, 'must be the name of a harness, "opencode" for instance');
export const harnessParam = z.strictObject({
  type: harnessType,
  /** Refused unless it is the version that the deployment has. */
  version: text(LIMITS.nameChars, 1).nullish(),
  options: notYet('harness options'),
});
export type HarnessParam = z.infer<typeof harnessParam>;
const harness = harnessParam.nullish();
/** Clients whose types know no `harness` name it in the agent's metadata under this key. */
export const HARNESS_METADATA_KEY = 'harness';

export const createAgentBody = z.strictObject({
  name: text(LIMITS.nameChars, 1),
  model: modelParam,
  description: text(LIMITS.descriptionChars).nullish(),
  system: text(LIMITS.systemChars).nullish(),
  tools: tools.nullish(),
  mcp_servers: mcpServers.nullish(),
  skills: emptyYet('skills'),
  multiagent: notYet('multiagent'),
  execution_identity: executionIdentity,
  harness,
  metadata: metadata.nullish(),
});
export type CreateAgentBody = z.infer<typeof createAgentBody>;

export const updateAgentBody = z.strictObject({
  version: z.int().min(1).optional(),
  name: text(LIMITS.nameChars, 1).optional(),
  model: modelParam.optional(),
  description: text(LIMITS.descriptionChars).nullish(),
  system: text(LIMITS.systemChars).nullish(),
  tools: tools.nullish(),
  mcp_servers: mcpServers.nullish(),
  skills: emptyYet('skills'),
  multiagent: notYet('multiagent'),
  execution_identity: executionIdentity,
  harness,
  metadata: metadataPatch.nullish(),
});
export type UpdateAgentBody = z.infer<typeof updateAgentBody>;

/** The agent resource as the wire has it. */
export const agentResource = z.strictObject({
  id: z.string(),
  type: z.literal('agent'),
  name: z.string(),
  description: z.string().nullable(),
  system: z.string().nullable(),
  model: modelConfig,
  tools: z.array(resolvedTool),
  mcp_servers: z.array(mcpServer),
  skills: z.array(z.never()),
  multiagent: z.null(),
  execution_identity: z.strictObject({ type: z.literal('service_account') }),
  harness: z.strictObject({ type: harnessType, version: z.string().optional() }),
  metadata: z.record(z.string(), z.string()),
  version: z.int(),
  created_at: timestamp,
  updated_at: timestamp,
  archived_at: timestamp.nullable(),
});
export type Agent = DeepReadonly<z.infer<typeof agentResource>>;

/** What a session keeps of its agent. */
export const agentSnapshot = agentResource.omit({
  metadata: true,
  created_at: true,
  updated_at: true,
  archived_at: true,
});
export type AgentSnapshot = DeepReadonly<z.infer<typeof agentSnapshot>>;
export function snapshotAgent(agent: Agent): AgentSnapshot {
  const {
    metadata: _metadata,
    created_at: _created,
    updated_at: _updated,
    archived_at: _archived,
    ...snapshot
  } = agent;
  return snapshot;
}

export const agentReference = z.union([
  idSchema('agent'),
  z.strictObject({ type: z.literal('agent'), id: idSchema('agent'), version: z.int().min(1).optional() }),
  z.strictObject({
    type: z.literal('agent_with_overrides'),
    id: idSchema('agent'),
    version: z.int().min(1).optional(),
    model: modelParam.optional(),
    system: text(LIMITS.systemChars).nullish(),
    tools: tools.nullish(),
    mcp_servers: mcpServers.nullish(),
    skills: emptyYet('skills'),
  }),
]);
export type AgentReference = z.infer<typeof agentReference>;
