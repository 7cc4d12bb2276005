import { SignIn } from '../../components/sign-in.tsx';

export const metadata = { title: 'Sign in' };

export default async function SignInPage({ searchParams }: { searchParams: Promise<{ next?: string | string[] }> }) {
  const { next } = await searchParams;
  // Only a page of ours: a path, and not one that a browser reads as another host.
  const target = typeof next === 'string' && /^\/(?![/\\])/.test(next) ? next : '/sessions';
  return <SignIn target={target} />;
}
