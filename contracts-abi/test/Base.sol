// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {Vm} from "./Vm.sol";

/// Cheat codes, comparisons that tell what differs, signatures.
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    /// The order of secp256k1; s and N - s sign the same digest, only the lower is accepted.
    uint256 internal constant N =
        0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    function bound(uint256 x, uint256 lo, uint256 hi) internal pure returns (uint256) {
        return x >= lo && x <= hi ? x : lo + (x % (hi - lo + 1));
    }

    function eq(uint256 got, uint256 want, string memory what) internal pure {
        require(
            got == want,
            string.concat(what, ": got ", Strings.toString(got), ", want ", Strings.toString(want))
        );
    }

    function eq(address got, address want, string memory what) internal pure {
        require(
            got == want,
            string.concat(
                what, ": got ", Strings.toHexString(got), ", want ", Strings.toHexString(want)
            )
        );
    }

    function eq(bytes32 got, bytes32 want, string memory what) internal pure {
        require(
            got == want,
            string.concat(
                what,
                ": got ",
                Strings.toHexString(uint256(got), 32),
                ", want ",
                Strings.toHexString(uint256(want), 32)
            )
        );
    }

    function atMost(uint256 a, uint256 b, string memory what) internal pure {
        require(a <= b, string.concat(what, ": ", Strings.toString(a), " > ", Strings.toString(b)));
    }

    function signed(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// Deploys a committed artifact, contracts-abi/<name>.json: what is tested here is what will be
    /// deployed, whatever settings the tests themselves are compiled with.
    function make(string memory name, bytes memory args) internal returns (address deployed) {
        string memory artifact = vm.readFile(string.concat(name, ".json"));
        bytes memory code = abi.encodePacked(vm.parseJsonBytes(artifact, ".bytecode"), args);
        assembly {
            deployed := create(0, add(code, 32), mload(code))
            if iszero(deployed) {
                returndatacopy(0, 0, returndatasize())
                revert(0, returndatasize())
            }
        }
    }

    function sOf(bytes memory signature) internal pure returns (bytes32 s) {
        assembly {
            s := mload(add(signature, 64))
        }
    }

    /// The other signature of the same key over the same digest: s above N / 2.
    function malleated(bytes memory signature) internal pure returns (bytes memory) {
        (bytes32 r, bytes32 s, uint8 v) = (0, 0, uint8(signature[64]));
        assembly {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
        }
        return abi.encodePacked(r, N - uint256(s), v == 27 ? uint8(28) : uint8(27));
    }
}
